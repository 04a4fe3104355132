"""`diffuse experiment=smoke`: every family of pipelines at its tiniest, in seconds, with checks of what comes out."""
