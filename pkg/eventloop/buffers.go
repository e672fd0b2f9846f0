package eventloop

import "math/bits"

// ScratchSize is the size of a loop's read buffer, in bytes, and of the largest lent buffer.
const ScratchSize = 64 << 10

const (
	minBufferBits = 10 // 1 KiB
	maxBufferBits = 16 // ScratchSize
	// What the free lists keep at most, in bytes, over all sizes; more goes back to the garbage collector.
	maxFreeBytes = 1 << 20
)

// Buffers lends byte slices in sizes of powers of two while bytes are pending. Who borrows returns; the contents of a
// returned buffer are gone at once (test builds overwrite them).
type Buffers struct {
	free      [maxBufferBits - minBufferBits + 1][][]byte
	freeBytes int
	lent      int
	lentBytes int
}

// Lend gives a buffer of length 0 and capacity of at least n bytes. More than ScratchSize is made to measure and not
// kept when it returns.
func (b *Buffers) Lend(n int) []byte {
	b.lent++
	class := classOf(n)
	if class > maxBufferBits-minBufferBits {
		b.lentBytes += n
		return make([]byte, 0, n)
	}
	size := 1 << (class + minBufferBits)
	b.lentBytes += size
	list := b.free[class]
	if len(list) == 0 {
		return make([]byte, 0, size)
	}
	buf := list[len(list)-1]
	list[len(list)-1] = nil
	b.free[class] = list[:len(list)-1]
	b.freeBytes -= size
	return buf
}

// Return takes back what Lend gave. Nil is ignored.
func (b *Buffers) Return(buf []byte) {
	if buf == nil {
		return
	}
	size := cap(buf)
	b.lent--
	b.lentBytes -= size
	scribble(buf[:size])
	class := classOf(size)
	if class > maxBufferBits-minBufferBits || size != 1<<(class+minBufferBits) || b.freeBytes+size > maxFreeBytes {
		return
	}
	b.free[class] = append(b.free[class], buf[:0])
	b.freeBytes += size
}

// Lent is how many buffers, and bytes, are out.
func (b *Buffers) Lent() (buffers, bytes int) { return b.lent, b.lentBytes }

func classOf(n int) int {
	if n <= 1<<minBufferBits {
		return 0
	}
	return bits.Len(uint(n-1)) - minBufferBits
}
