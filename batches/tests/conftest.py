"""What tests of batches share."""

import pytest
from django.test import Client

from batches.tests.browsing import client_as


@pytest.fixture
def operator() -> Client:
    """The browser of an operator."""
    return client_as("operator")
