"""What goes wrong for reasons that a user can mend; the messages say what and how."""

from steer_pipeline.campaigns.campaign import NoSuchName, Stopped
from steer_pipeline.campaigns.driver import NotHere
from steer_pipeline.catalogue import CatalogueError
from steer_pipeline.io.query import QueryError
from steer_pipeline.io.store import StoreError
from steer_pipeline.lab.generation.journal import JournalError

WRONG_USE = (NoSuchName,)
MENDABLE = (CatalogueError, StoreError, JournalError, QueryError, Stopped, NotHere)
