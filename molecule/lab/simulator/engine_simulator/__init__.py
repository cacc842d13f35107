"""Simulated inference engines for the test lab: no model runs, memory is a ledger in /run/lab/gpu."""
