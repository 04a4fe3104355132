"""From overrides to a checked request: `groups` reads `conf/`, `quoting` takes texts literally, `compose` composes,
`mistakes` turns errors of Hydra into one line, and `request` resolves, fills, checks and reads.

It reads no weights and uses no network.
"""
