"""Percentages, rates, and when a batch will be done. Pure: no Django."""

SAMPLE_SECONDS = 10  # fine enough for the rate of the last minute, coarse enough for one row a batch and stretch
