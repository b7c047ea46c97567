"""Data: labelled text in, checked splits and token tables out. Nothing here imports torch."""
