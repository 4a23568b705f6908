"""Learned geometry: a unit with one flat tail keeps the inputs' geometry, with two the targets'."""
