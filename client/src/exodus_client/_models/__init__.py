"""Models on a server, trained from here."""
