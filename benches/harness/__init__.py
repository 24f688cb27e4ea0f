"""The measuring harness: starts every process, measures in turns, judges the ratios and prints a table."""
