"""Explains why dest does not compute what src computes: every place where it departs, dest's ops given src's values."""
