"""Artefacts: the exported student with its manifest, written, read, quantised and timed.

This package knows task models and no task. Loading an artefact runs no code from it.
"""
