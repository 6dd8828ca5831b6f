"""What training on the server costs beyond training in the process."""
