package pgwire

// ErrorRoutine finds the field of an ErrorResponse that names the function which raised it, "" if there is none. Unlike
// the message it is never translated.
func ErrorRoutine(body []byte) string {
	for len(body) > 0 && body[0] != 0 {
		value, rest, ok := NextString(body[1:])
		if !ok {
			break
		}
		if body[0] == 'R' {
			return value
		}
		body = rest
	}
	return ""
}
