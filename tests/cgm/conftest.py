"""Tests of the model; that this file is here puts the folder on the path, for `tiny`."""
