"""The ops, each in a folder of its own: api, registration, one file an implementation."""
