"""Clusters to be launched: what their files say, whether their machines are ready; files for other launchers."""
