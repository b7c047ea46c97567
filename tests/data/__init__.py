"""Tests of fleetune.data."""
