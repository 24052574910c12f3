"""Concept models as MODELs of the host: read, built, converted, written."""
