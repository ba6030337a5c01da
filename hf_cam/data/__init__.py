"""Explain data sets: one callable for `datasets` and Ray, and a resumable command that writes Parquet."""
