"""Compares subsets of a pool (`clipmill bench`), and tells differences from luck."""
