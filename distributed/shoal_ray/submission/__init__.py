"""Jobs on a cluster that someone else started: what is sent there, what is asked first, what came of it."""
