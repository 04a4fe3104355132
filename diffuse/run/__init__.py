"""How one request becomes files and a record. It opens pipelines, and knows nothing of the layers of their models."""
