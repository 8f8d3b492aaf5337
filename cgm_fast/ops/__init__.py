"""The three ops, each in a folder of its own: api, registration, and one file per implementation."""
