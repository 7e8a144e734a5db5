"""Objectives that many papers share; networks come in as constructor arguments."""
