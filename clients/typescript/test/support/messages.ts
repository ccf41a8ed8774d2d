// What the relay writes, for tests that need no relay: states, entries and messages as in docs/contract.md, section 4.
/** The message of a session's state. */
export function message(fields: {
  id: string;
  userId?: string;
  revision?: number | null;
  cursor?: string | null;
  status?: string;
  live?: boolean;
  expireAt?: number | null;
  event?: Record<string, unknown>;
}): string {
  const { id, userId = "user_1", revision = 1, cursor = null, status = "active", expireAt = null, event } = fields;
  const { live = status === "active" } = fields;
  const at = 1_795_422_700_000;
  const read = {
    schema_version: 1,
    cursor,
    revision,
    previous_status: revision === null || revision === 1 ? null : "active",
    event: {
      id: `msg_${id}_${revision}`,
      type: status === "active" ? "session.created" : `session.${status}`,
      occurred_at: at,
      instance_id: "ins_1",
      source: "clerk",
      ...event,
    },
    session: {
      object: "session",
      id,
      user_id: userId,
      client_id: "client_1",
      actor: null,
      status,
      live,
      last_active_organization_id: null,
      last_active_at: at,
      latest_activity: null,
      expire_at: expireAt,
      abandon_at: null,
      updated_at: at,
      created_at: at,
      tasks: [],
    },
  };
  return JSON.stringify(read);
}
