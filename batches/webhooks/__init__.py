"""Webhooks: who wants to hear of which events, and the deliveries that tell them."""
