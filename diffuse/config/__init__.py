"""From words to a checked request: composes the configuration, reads overrides and says what is wrong with them.

It reads no weights and uses no network.
"""
