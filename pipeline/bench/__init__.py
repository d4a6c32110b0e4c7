"""`clipmill bench`: which subset of a pool is better, and by how much more than luck."""
