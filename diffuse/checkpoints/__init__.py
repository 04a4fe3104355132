"""Where weights come from, and how a module gets them.

It knows file formats and the hub, and no family of models by name.
"""
