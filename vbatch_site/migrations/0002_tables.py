"""What Django's models can't say of two tables."""

from django.db import migrations

APPEND_ONLY = """
CREATE FUNCTION vbatch_site_audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('vbatch.audit_sweep', true) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the audit is append-only';
END $$;
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON vbatch_site_auditentry
    FOR EACH ROW EXECUTE FUNCTION vbatch_site_audit_append_only();
"""
UNDO = """
DROP TRIGGER audit_append_only ON vbatch_site_auditentry;
DROP FUNCTION vbatch_site_audit_append_only();
"""

# Half of each page stays free, so that a row that changes with every request is changed where it is. What is lost with
# an unlogged table is how many requests were made in the last minute.
BUCKETS = """
ALTER TABLE vbatch_site_requestbucket SET UNLOGGED;
ALTER TABLE vbatch_site_requestbucket SET (fillfactor = 50);
"""


class Migration(migrations.Migration):
    dependencies = [("vbatch_site", "0001_initial")]

    operations = [
        migrations.RunSQL(APPEND_ONLY, UNDO),
        migrations.RunSQL(BUCKETS, migrations.RunSQL.noop),
    ]
