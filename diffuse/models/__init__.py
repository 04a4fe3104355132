"""The models: a configuration, the modules, and the few published keys that need another name."""
