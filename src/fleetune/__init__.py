"""Fleetune: fine-tune a fleet of small adapters on one frozen encoder, and say honestly which one is best."""

__version__ = "0.1.0"
