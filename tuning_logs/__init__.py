"""Tuning records that come with the package, one directory a target."""
