"""Rooms of this package."""
