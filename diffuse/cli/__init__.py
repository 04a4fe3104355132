"""The commands that a user types, and what they print. Nothing here touches a tensor."""
