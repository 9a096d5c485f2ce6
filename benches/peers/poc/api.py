"""The API: flags a row, commits, then publishes one message.

    POC_… uvicorn --app-dir benches/peers/poc api:app
"""
import os
from uuid import UUID

import psycopg
from fastapi import FastAPI, HTTPException

import topic

app = FastAPI()
database = psycopg.connect(os.environ["POC_DATABASE_URL"], autocommit=True)
events = topic.producer()


@app.delete("/documents/{document_id}", status_code=202)
def delete(document_id: UUID):
    flagged = database.execute(
        "update documents set deleted_at = now() where id = %s and deleted_at is null", (document_id,)
    )
    if flagged.rowcount == 0:
        raise HTTPException(404)
    topic.publish(events, "deletion_requested", str(document_id))
    return {"id": document_id}
