"""What a frozen process has locked is free again soon; people's sessions are left alone."""

import time

import psycopg
import pytest
from django.db import connection

from vbatch_site import sessions


@pytest.mark.django_db
def test_sessions_of_ours_that_sit_in_a_transaction_are_ended_and_those_of_people_are_not() -> None:
    parameters = connection.get_connection_params()
    known = {key: parameters[key] for key in ("dbname", "user", "host", "port", "password") if parameters.get(key)}
    with (
        psycopg.connect(**known, application_name=parameters["application_name"]) as idle,
        psycopg.connect(**known, application_name=parameters["application_name"]) as copying,
        psycopg.connect(**known, application_name=parameters["application_name"], autocommit=True) as listening,
        psycopg.connect(**known, application_name="psql") as person,
    ):
        for each in (idle, copying, listening, person):
            each.execute("SELECT 1")
        copying.execute("CREATE TEMPORARY TABLE copied (n int)")
        with pytest.raises(psycopg.OperationalError), copying.cursor().copy("COPY copied FROM STDIN") as copy:  # noqa: PT012
            copy.write_row([1])
            time.sleep(0.2)
            sessions.end_stuck(0.1)
        with pytest.raises(psycopg.OperationalError):
            idle.execute("SELECT 1")
        for each in (listening, person):
            each.execute("SELECT 1")
