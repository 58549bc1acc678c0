"""Clouds that exist only in a test: Pulumi's provider protocol, spoken to a real engine."""
