"""The OpenAPI document, with examples that can be sent as they are."""
