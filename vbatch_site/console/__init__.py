"""The operators' console: rights, pages, navigation, and the dashboard that every room adds to."""
