"""Whole runs: train, evaluate, draw."""
