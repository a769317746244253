"""Sections of the vector evaluation report: functions from its inputs to blocks of a document."""
