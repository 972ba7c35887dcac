"""The `tercet` command: thin verbs over the package."""
