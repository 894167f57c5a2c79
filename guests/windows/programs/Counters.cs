// SPDX-License-Identifier: GPL-2.0-or-later
// What loads, verifier and stall program count, and the report takes: a file that all of them map.
//
// The report takes each figure by exchanging it with 0, so that nothing is counted twice and nothing is lost.
using System;
using System.Diagnostics;
using System.IO;
using System.IO.MemoryMappedFiles;
using System.Text;
using System.Threading;

namespace Memshare
{
    unsafe class Counters
    {
        public const int Buckets = 192;
        const int FileBytes = 8192;
        const int TextBytes = 512;

        // The file's words, then its texts.
        const int SinceWord = 0, StallWord = 1, VerifierWord = 2, ClaimedWord = 3, LoadBeganWord = 4, LatencyWord = 8;
        const int LoadText = 4096, WrongText = 4096 + TextBytes;

        static readonly long[] bounds = MakeBounds();
        readonly byte* memory;

        public Counters()
        {
            // Never closed: it lives as long as the process.
            FileStream stream = new FileStream(
                Background.PathOf("counters"), FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.ReadWrite);
            if (stream.Length < FileBytes)
                stream.SetLength(FileBytes);
            MemoryMappedFile file = MemoryMappedFile.CreateFromFile(
                stream, null, FileBytes, MemoryMappedFileAccess.ReadWrite, null, HandleInheritability.None, false);
            MemoryMappedViewAccessor view = file.CreateViewAccessor(0, FileBytes);
            byte* start = null;
            view.SafeMemoryMappedViewHandle.AcquirePointer(ref start);
            memory = start;
            if (Interlocked.Read(ref *Word(SinceWord)) > ClockNs())
                for (int word = 0; word < FileBytes / 8; word++)
                    *Word(word) = 0; // of before the guest was started anew
            Interlocked.CompareExchange(ref *Word(SinceWord), ClockNs(), 0);
        }

        /// Monotonic, and the same for all processes.
        public static long ClockNs()
        {
            return (long)(Stopwatch.GetTimestamp() * (1e9 / Stopwatch.Frequency));
        }

        /// Begins a load: what was counted of the one before is forgotten.
        public void Begin(string load)
        {
            WriteText(LoadText, load);
            for (int bucket = 0; bucket < Buckets; bucket++)
                TakeLatency(bucket);
            TakeInterval();
        }

        public string Load
        {
            get { return ReadText(LoadText); }
        }

        /// It runs since then, or has died; 0: none, or one that is being ended or started.
        public long LoadBeganNs
        {
            get { return Interlocked.Read(ref *Word(LoadBeganWord)); }
            set { Interlocked.Exchange(ref *Word(LoadBeganWord), value); }
        }

        /// Nanoseconds since the last call.
        public long TakeInterval()
        {
            long now = ClockNs();
            return now - Interlocked.Exchange(ref *Word(SinceWord), now);
        }

        public long TakeLatency(int bucket)
        {
            return Interlocked.Exchange(ref *Word(LatencyWord + bucket), 0);
        }

        public long TakeStall()
        {
            return Interlocked.Exchange(ref *Word(StallWord), 0);
        }

        public void Stalled(long microseconds)
        {
            for (;;)
            {
                long longest = Interlocked.Read(ref *Word(StallWord));
                if (microseconds <= longest ||
                    Interlocked.CompareExchange(ref *Word(StallWord), microseconds, longest) == longest)
                    return;
            }
        }

        /// An operation that began then has ended now.
        public void Operation(long beganNs)
        {
            long took = (ClockNs() - beganNs) / 1000;
            int bucket = Array.BinarySearch(bounds, took);
            bucket = Math.Min(bucket < 0 ? ~bucket : bucket, Buckets - 1);
            Interlocked.Increment(ref *Word(LatencyWord + bucket));
        }

        /// Each is an eighth more than the one below, or 1 us.
        public static long BoundUs(int bucket)
        {
            return bounds[bucket];
        }

        /// When the verifier last ended a pass or was started; 0: never.
        public long VerifierNs
        {
            get { return Interlocked.Read(ref *Word(VerifierWord)); }
            set { Interlocked.Exchange(ref *Word(VerifierWord), value); }
        }

        /// Memory did not hold what was written to it. The first to say so is kept for good.
        public void SetWrong(string words)
        {
            if (Interlocked.Exchange(ref *Word(ClaimedWord), 1) == 0)
                WriteText(WrongText, words);
        }

        /// Empty while nothing was found wrong.
        public string Wrong
        {
            get
            {
                bool isClaimed = Interlocked.Read(ref *Word(ClaimedWord)) != 0;
                string words = ReadText(WrongText);
                return isClaimed && words.Length == 0 ? "something" : words;
            }
        }

        long* Word(int number)
        {
            return (long*)memory + number;
        }

        void WriteText(int at, string text)
        {
            byte[] bytes = Encoding.ASCII.GetBytes(text);
            int count = Math.Min(bytes.Length, TextBytes - 1);
            for (int i = 0; i < count; i++)
                memory[at + i] = bytes[i];
            memory[at + count] = 0;
        }

        string ReadText(int at)
        {
            StringBuilder text = new StringBuilder();
            for (int i = 0; i < TextBytes && memory[at + i] != 0; i++)
                text.Append((char)memory[at + i]);
            return text.ToString();
        }

        static long[] MakeBounds()
        {
            long[] made = new long[Buckets];
            made[0] = 1;
            for (int i = 1; i < Buckets; i++)
                made[i] = made[i - 1] + (made[i - 1] >= 8 ? made[i - 1] / 8 : 1);
            return made;
        }
    }
}
