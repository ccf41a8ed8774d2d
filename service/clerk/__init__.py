"""What Clerk sends: signatures, events, and the state that an event makes; svix enters here.

Only `api_requests`, beneath the client of Clerk's Backend API, does I/O.
"""
