"""Compares subsets of a pool (`clipmill bench`): which is better, and by more than luck?"""
