"""Many runs as one search: what may change, who learns from whom, and what became of each."""
