"""Building blocks and frozen trunks."""
