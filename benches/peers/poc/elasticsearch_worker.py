"""Deletes the search document of each document whose deletion was asked for, and says so."""
import os

from elasticsearch import Elasticsearch, NotFoundError

import topic

search = Elasticsearch(os.environ["POC_ELASTICSEARCH_URL"])
index = os.environ["POC_ELASTICSEARCH_INDEX"]
done = topic.producer()

for message in topic.messages("elasticsearch"):
    if message["type"] == "deletion_requested":
        document_id = message["document_id"]
        try:
            search.delete(index=index, id=document_id)
        except NotFoundError:
            pass  # Deleted before: the message came twice.
        topic.publish(done, "elasticsearch_deleted", document_id)
