"""Removes the row of each document once both workers have said that their copy is gone."""
import os

import psycopg

import topic

NEEDED = {"s3_deleted", "elasticsearch_deleted"}

database = psycopg.connect(os.environ["POC_DATABASE_URL"], autocommit=True)
heard = {}

for message in topic.messages("finalizer"):
    if message["type"] in NEEDED:
        document_id = message["document_id"]
        of_document = heard.setdefault(document_id, set())
        of_document.add(message["type"])
        if of_document == NEEDED:
            database.execute("delete from documents where id = %s and deleted_at is not null", (document_id,))
            del heard[document_id]
