package pgwire

import "encoding/binary"

// AppendBind writes a Bind of the unnamed statement to the unnamed portal with one parameter; it and all results are
// text.
func AppendBind(dst []byte, value string) []byte {
	dst = append(dst, Bind)
	dst = binary.BigEndian.AppendUint32(dst, uint32(4+1+1+2+2+4+len(value)+2))
	dst = append(dst, 0, 0, 0, 0, 0, 1)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(value)))
	dst = append(dst, value...)
	return append(dst, 0, 0)
}

// AppendDescribePortal writes a Describe of the unnamed portal.
func AppendDescribePortal(dst []byte) []byte { return append(dst, Describe, 0, 0, 0, 6, 'P', 0) }

// AppendExecute writes an Execute of the unnamed portal for at most so many rows.
func AppendExecute(dst []byte, rows uint32) []byte {
	dst = append(dst, Execute, 0, 0, 0, 9, 0)
	return binary.BigEndian.AppendUint32(dst, rows)
}

// NextValue cuts a value off the columns of a DataRow; nil is NULL.
func NextValue(b []byte) (value, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, b, false
	}
	n := int32(binary.BigEndian.Uint32(b))
	if n == -1 {
		return nil, b[4:], true
	}
	if n < 0 || int(n) > len(b)-4 {
		return nil, b, false
	}
	return b[4 : 4+n : 4+n], b[4+n:], true
}
