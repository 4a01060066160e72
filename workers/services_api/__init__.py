"""The Services API, below /api/v1/: services, groups of them, recipes, and prompts to a service."""
